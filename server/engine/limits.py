"""How much the engine does in one step."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepLimits:
    """Set once, from the settings, the checkpoint and what the runner settled on."""

    num_state_slots: int
    """Sequences that run together at most."""
    max_step_tokens: int
    """Tokens of all rows of a step at most."""
    max_step_vision_blocks: int
    """Tower blocks x crops of a step while a sequence decodes: how long decoding waits for pictures."""
    max_idle_crops: int
    """Crops of a step while no sequence decodes; a text request that arrives waits for this much. 1 where the device
    has nothing to gain from several crops at once."""
    crop_queries: int
    """Positions in the prompt that a crop's vectors take."""

    def __post_init__(self) -> None:
        if self.max_step_tokens < self.num_state_slots:
            raise ValueError(
                f"max_step_tokens {self.max_step_tokens} is less than the {self.num_state_slots} sequences that run "
                "together, which may all decode in one step"
            )
        if min(self.num_state_slots, self.max_step_vision_blocks, self.max_idle_crops, self.crop_queries) < 1:
            raise ValueError(f"every limit of a step must be at least 1: {self}")
