"""The words of a report, for who meets them for the first time; docs/architecture.md has all."""

GLOSSARY = {
    "sample, group": "one training example; your label of it (source, task, category)",
    "coreset": "the samples that were chosen to train on until the next version",
    "version": "what one checkpoint of the training led to: scores of all samples, and a coreset",
    "measured": "the model was run on the sample at that checkpoint",
    "propagated": "its score was estimated from measured samples that are similar",
    "stale": "its score was kept as it was",
    "importance": "the score that selection uses, 0 to 1: for the usual score, the rank of the "
    "size of the sample's gradient in its group, corrected for length",
    "norm": "the size of a sample's gradient: how much the model would change by it",
    "worth, value": "how many random samples tell the direction of training as well as those of "
    "the coreset",
    "perfect norms": "as if every sample had been measured at that checkpoint",
    "value kept": "the share of the gain of perfect norms that the coreset has",
    "weight": "how many samples one of the coreset stands for; the mean is 1",
    "cost": "what measuring took, as a share of the compute of the training itself",
    "features": "a vector of each sample; what is near in it, the model takes for alike",
    "target": "samples of the task that the training is for, where the recipe names some",
    "churn": "the share of the coreset before that was replaced",
    "loss": "how surprised the model is by the answer, in nats a token; lower is better",
    "nat": "the unit of a loss: 0 is certain of the right token, 0.7 gives it one chance in two, "
    "2.3 one in ten",
    "rank correlation": "how alike two orders are: 1 the same, 0 unrelated, -1 reversed",
    "cosine": "how alike two vectors point, and so how alike two samples are to the model: 1 the "
    "same, 0 unrelated",
    "k-NN graph": "each sample joined with those that are nearest to it by their features",
}
"""Word -> what it means."""
