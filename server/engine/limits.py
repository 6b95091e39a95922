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
    max_step_draws: int
    """Draws of a step at most: one a sequence, and one for each drafted id."""
    max_draft_tokens: int
    """Ids of a draft at most; 0 turns speculation off."""
    max_draft_sequences: int
    """While more sequences than this decode, there are no drafts."""

    def __post_init__(self) -> None:
        if self.max_step_tokens < self.num_state_slots:
            raise ValueError(
                f"max_step_tokens {self.max_step_tokens} is less than the {self.num_state_slots} sequences that run "
                "together, which may all decode in one step"
            )
        if self.max_step_draws < self.num_state_slots:
            raise ValueError(f"max_step_draws {self.max_step_draws} is less than {self.num_state_slots} sequences need")
        if self.max_draft_tokens < 0:
            raise ValueError(f"a draft cannot have {self.max_draft_tokens} ids")
        least = min(self.num_state_slots, self.max_step_vision_blocks, self.max_idle_crops, self.crop_queries)
        if min(least, self.max_draft_sequences) < 1:
            raise ValueError(f"every limit of a step must be at least 1: {self}")
