"""Scores and features of samples under a checkpoint's model, all read off one shared pass.

    rows ─executors→ shards ─batches→ padded batch ─model_pass→ readers ─→ Measurement

`model_pass` runs the model: body (`layers`), logits at target positions only (`readout`), and one
backward pass that hands every linear layer's inputs and gradients to whoever wants them
(`layer_tap`). What is read off it are small classes behind one protocol: `scorers` and `features`.
What a score means, and how importance is made of it, is in `gracekit.scores`, which needs no torch.
"""
