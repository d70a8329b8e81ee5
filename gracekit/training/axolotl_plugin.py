"""A plugin for Axolotl: its trainer draws from the newest coreset of a store.

In the configuration:

    plugins: [gracekit.training.axolotl_plugin.CoresetPlugin]
    gracekit: {store: gracekit-store, num_samples: 2000}

This module imports Axolotl, so it is loaded only where Axolotl asks for it.
"""

from __future__ import annotations

import importlib
from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

from gracekit.errors import RecipeError
from gracekit.training.callback import CoresetCallback, CoresetTrainerMixin

KEY = "gracekit"
"""Of Axolotl's configuration: the arguments of `CoresetCallback`."""


class GracekitArgs(BaseModel):
    """What the plugin adds to Axolotl's configuration."""

    gracekit: dict[str, Any] | None = None


class CoresetPlugin(BasePlugin):  # type: ignore[misc]
    """Puts `CoresetCallback` into Axolotl's trainer, and the weights into its loss.

    Axolotl shuffles the data before it trains, so rows are told by their tokens: set
    `data.rendering: axolotl` in the recipe, so that these are the same. Where they are not, no
    coreset is drawn from, and a warning says why. With `sample_packing` Axolotl batches by itself,
    which is such a case too.
    """

    def get_input_args(self) -> str:
        """The class that describes the configuration's key."""
        return f"{GracekitArgs.__module__}.{GracekitArgs.__name__}"

    def get_trainer_cls(self, cfg: Any) -> type[Any] | None:
        """The trainer of supervised fine-tuning, with the mixin; other trainers stay as they are.

        With the mixin `num_samples` is the length of an epoch, and weights reach the loss.
        """
        arguments(cfg)
        others = ("rl", "reward_model", "process_reward_model")
        if any(cfg.get(name) for name in others) or cfg.get("model_config_type") == "mamba":
            return None
        # Loaded as late as Axolotl itself does, which changes modules before.
        trainer = importlib.import_module("axolotl.core.trainers").AxolotlTrainer
        return type("CoresetAxolotlTrainer", (CoresetTrainerMixin, trainer), {})

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        """With `num_samples` the trainer counts its steps by the length of its epochs.

        Axolotl counts them by the rows of the data; its own `max_steps` still holds.
        """
        is_shorter = arguments(cfg).get("num_samples") and not cfg.get("max_steps")
        return {"max_steps": -1} if is_shorter else {}

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        """The callback, which logs with this trainer."""
        callback = CoresetCallback(**arguments(cfg))
        callback.log_to(trainer)
        return [callback]


def arguments(cfg: Any) -> dict[str, Any]:
    """The arguments of `CoresetCallback` in the configuration; `RecipeError` without a store."""
    found = dict(cfg.get(KEY) or {})
    if "store" not in found:
        raise RecipeError(
            f"the Axolotl plugin of gracekit needs the key {KEY!r} in the configuration, such as "
            f"{KEY}: {{store: gracekit-store}}; found {found or 'none'}"
        )
    return found
