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
    "image_size": 160,
    "initializer_range": 0.1,
    "intermediate_size": 512,
    "max_position_embeddings": 4096,
    "max_slice_nums": 9,
    "mm_use_im_start_end": True,
    "model_type": "minicpmv",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "patch_size": 16,
    "pretraining_tp": 1,
    "query_num": 64,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "scale_depth": 1.4,
    "scale_emb": 12,
    "scale_resolution": 160,
    "slice_mode": True,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0",
    "use_cache": True,
    "vision_config": {"depth": 6, "hidden_size": 224, "image_size": 160, "mlp_ratio": 4.0, "num_heads": 7},
    "vision_encoder": "vit_so400m_patch14_siglip_384.webli",
}
"""As in config.json, without `vocab_size`, which is the tokenizer's."""


def model_config(vocab_size: int) -> ModelConfig:
    return parse_config(CONFIG | {"vocab_size": vocab_size})


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of one training run; every one is an option of `python -m model.demo.train`."""

    seed: int = 0
    see_steps: int = 900
    """Steps of the first stage: the vision tower alone, told what each patch shows and where it lies."""
    answer_steps: int = 2200
    """Steps of the second stage: the whole model, asked questions, and still told what is where."""
    see_crops: int = 64
    """Of a step of the first stage."""
    answer_crops: int = 40
    """Of a step of the second stage, at the most."""
    page_crops: int = 20
    """Of a step of the second stage: pictures beside those of the questions, only to see."""
    tokens_per_step: int = 4500
    """Of the language model in the second stage, about: with one crop a picture this is the limit."""
    muon_lr: float = 0.003
    """Of the weights [outputs, inputs] of the hidden layers."""
    adam_lr: float = 0.001
    """Of everything else."""
    weight_decay: float = 0.05
    warmup_steps: int = 50
    """At the beginning of each stage."""
    decay_share: float = 0.3
    """Last part of the second stage, in which the learning rates go down to a twentieth, linearly."""
    dense_loss: float = 1.0
    """Weight in the second stage of being told what is where."""

    def rate(self, step: int) -> float:
        """The factor on the learning rates at a step, counted through both stages."""
        last = self.see_steps + self.answer_steps
        since = step if step < self.see_steps else step - self.see_steps
        rising = min(1.0, (since + 1) / self.warmup_steps)
        left = (last - step) / (self.decay_share * self.answer_steps)
        return rising * max(0.05, min(1.0, left))
