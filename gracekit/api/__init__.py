"""The public verbs: what the command line does, from Python, under the same names.

`gracekit.refresh`, `gracekit.status` and so on are these; `import gracekit` loads each module when
one of its verbs is first used. Every verb takes a store as a path or as an open `Store`, options
under the names that they have on the command line, and a version as its number or `"latest"`.

`starting` writes a recipe, `making` measures checkpoints and `selecting` selects anew; `reading`
and `samples` look at versions, `keeping` holds and removes them, `exporting` writes training data,
`asking` answers SQL, `doctoring` looks at checkpoints. They are apart so that a verb loads what it
needs: only `making`, and `doctoring` where it plans, load torch.
"""
