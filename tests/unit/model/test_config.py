import json

import pytest

from model.config import ConfigError, load_config, parse_config
from tests.support.golden import TINY_V1, TINY_V2

OFFICIAL_2_0 = {
    "architectures": ["MiniCPMV"],
    "model_type": "minicpmv",
    "hidden_size": 2304,
    "num_hidden_layers": 40,
    "num_attention_heads": 36,
    "num_key_value_heads": 36,
    "intermediate_size": 5760,
    "hidden_act": "silu",
    "vocab_size": 122753,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 256,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pretraining_tp": 1,
    "vision_encoder": "vit_so400m_patch14_siglip_384.webli",
    "drop_vision_last_layer": True,
    "query_num": 64,
    "image_size": 448,
    "slice_mode": True,
    "max_slice_nums": 9,
    "scale_resolution": 448,
    "patch_size": 14,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0",
    "use_cache": True,
    "mm_use_im_start_end": True,
}


def without(*keys):
    return {key: value for key, value in OFFICIAL_2_0.items() if key not in keys}


def test_official_2_0_sizes():
    config = parse_config(OFFICIAL_2_0)
    assert config.release == "2.0"
    assert (config.bos_id, config.eos_id, config.max_context_tokens) == (1, 2, 4096)
    language = config.language
    assert (language.vocab_size, language.hidden_size, language.num_layers, language.mlp_size) == (
        122753,
        2304,
        40,
        5760,
    )
    assert (language.num_heads, language.num_kv_heads, language.head_size) == (36, 36, 64)
    assert language.scale_embedding == 12
    assert language.scale_residual == pytest.approx(0.2213594)
    assert language.scale_logits == 9.0
    assert not language.tied_head
    vision = config.vision
    assert (vision.hidden_size, vision.num_blocks, vision.num_heads) == (1152, 26, 16)
    assert (vision.mlp_size, vision.patch_size, vision.position_side) == (4304, 14, 27)
    resampler = config.resampler
    assert (resampler.num_queries, resampler.num_heads, resampler.hidden_size, resampler.vision_size) == (
        64,
        18,
        2304,
        1152,
    )
    assert resampler.grid_positions
    assert (config.slicing.enabled, config.slicing.max_slices, config.slicing.scale_resolution) == (True, 9, 448)


def test_config_without_slicing_keys_is_1_0():
    config = parse_config(without("slice_mode", "max_slice_nums", "scale_resolution", "patch_size"))
    assert config.release == "1.0"
    assert not config.slicing.enabled
    assert not config.resampler.grid_positions
    assert config.slicing.image_size == 448


def test_tiny_checkpoints_override_the_tower():
    v2, v1 = load_config(TINY_V2), load_config(TINY_V1)
    assert (v2.release, v2.vision.hidden_size, v2.vision.num_blocks, v2.vision.mlp_size) == ("2.0", 144, 3, 538)
    assert (v1.release, v1.vision.hidden_size, v1.vision.num_blocks, v1.vision.mlp_size) == ("1.0", 96, 2, 358)
    assert (v2.language.tied_head, v1.language.tied_head) == (False, True)
    assert v2.vision.position_side == 27


def test_last_block_can_be_kept():
    assert parse_config(OFFICIAL_2_0 | {"drop_vision_last_layer": False}).vision.num_blocks == 27


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 8}, "keys this program does not know: num_experts"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', found 'gelu'"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling must be None"),
        ({"model_type": "llama"}, "model_type must be 'minicpmv'"),
        ({"hidden_size": 2300}, "hidden_size 2300 must be a multiple"),
        ({"num_key_value_heads": 5}, "num_attention_heads of num_key_value_heads 5"),
        ({"hidden_size": "2304"}, "hidden_size must be of type int, found '2304'"),
        ({"hidden_size": 2304.0}, "hidden_size must be of type int"),
        ({"vocab_size": True}, "vocab_size must be of type int"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be of type bool"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be above zero"),
        ({"scale_depth": float("nan")}, "scale_depth must be above zero"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be above zero"),
        ({"vision_config": None}, "vision_config must be of type dict"),
        ({"vision_config": {"depth": 2.5}}, r"vision_config\.depth must be of type int"),
        ({"vision_config": {"depht": 3}}, "vision_config has unknown keys: depht"),
        ({"vision_encoder": "vit_large"}, "vision_encoder 'vit_large' is not implemented"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(change, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(OFFICIAL_2_0 | change)


def test_missing_key_is_named():
    with pytest.raises(ConfigError, match="lacks the key scale_depth"):
        parse_config(without("scale_depth"))


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json in"):
        load_config(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe"])
def test_file_that_is_not_json(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match="is not valid JSON"):
        load_config(tmp_path)


def test_file_that_is_not_an_object(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps([OFFICIAL_2_0]), encoding="utf-8")
    with pytest.raises(ConfigError, match="does not hold a JSON object"):
        load_config(tmp_path)
