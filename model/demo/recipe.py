"""The sizes of the demo and the settings of its training."""

from dataclasses import dataclass
from typing import Any

from model.config import ModelConfig, parse_config

CONFIG: dict[str, Any] = {
    "_name_or_path": "demo",
    "architectures": ["MiniCPMV"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dim_model_base": 128,
    "drop_vision_last_layer": True,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 256,
    "image_size": 128,
    "initializer_range": 0.1,
    "intermediate_size": 512,
    "max_position_embeddings": 4096,
    "max_slice_nums": 9,
    "mm_use_im_start_end": True,
    "model_type": "minicpmv",
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "num_key_value_heads": 4,
    "patch_size": 16,
    "pretraining_tp": 1,
    "query_num": 81,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "scale_depth": 1.4,
    "scale_emb": 12,
    "scale_resolution": 128,
    "slice_mode": True,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0",
    "use_cache": True,
    "vision_config": {"depth": 6, "hidden_size": 288, "image_size": 128, "mlp_ratio": 4.0, "num_heads": 9},
    "vision_encoder": "vit_so400m_patch14_siglip_384.webli",
}
"""As in config.json, without `vocab_size`, which is the tokenizer's."""


def model_config(vocab_size: int) -> ModelConfig:
    return parse_config(CONFIG | {"vocab_size": vocab_size})


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of one training run; every one is an option of `python -m model.demo.train`."""

    seed: int = 0
    aim_step: int = 1200
    """Where the first stage goes on with the resampler: until then it is the tower that is told what each patch shows
    and where it lies."""
    see_steps: int = 4000
    """Steps of the first stage: the tower and the resampler, without the language model."""
    answer_steps: int = 10000
    """Steps of the second stage: the language model, asked questions about what the others see."""
    joint_steps: int = 8000
    """Of these, the last ones, in which the tower and the resampler learn too, and are still told what is where."""
    see_crops: int = 80
    """Of a step of the first stage."""
    answer_crops: int = 40
    """Of a step of the second stage, at the most."""
    page_crops: int = 24
    """Of a step in which all learn: pictures beside those of the questions, only to see."""
    tokens_per_step: int = 4600
    """Of the language model in the second stage, about: with one crop a picture this is the limit."""
    muon_lr: float = 0.002
    """Of the weights [outputs, inputs] of the hidden layers."""
    adam_lr: float = 0.0007
    """Of everything else."""
    joint_rate: float = 0.55
    """Factor on both where everything learns together: its gradients are noisier."""
    weight_decay: float = 0.05
    warmup_steps: int = 50
    """At the beginning of each stage."""
    short_share: float = 0.35
    """First part of the second stage, in which most pictures are of one crop."""
    decay_share: float = 0.4
    """Last part of each stage, in which the learning rates go down to a twentieth, linearly."""

    def learns_to_see(self, step: int) -> bool:
        """Whether the tower and the resampler learn in a step, counted through both stages."""
        return not self.see_steps <= step < self.see_steps + self.answer_steps - self.joint_steps

    def rate(self, step: int) -> float:
        """The factor on the learning rates at a step."""
        since, steps = (step, self.see_steps) if step < self.see_steps else (step - self.see_steps, self.answer_steps)
        rising = min(1.0, (since + 1) / self.warmup_steps)
        if step >= max(self.see_steps, self.see_steps + self.answer_steps - self.joint_steps):
            rising *= self.joint_rate
        return rising * max(0.05, min(1.0, (steps - since) / (self.decay_share * steps)))
