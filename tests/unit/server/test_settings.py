"""Flags, environment, YAML and secrets are the same settings; whatever is wrong is named."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from server.settings import InvalidSettings, Settings, load_settings, parse_bytes, parse_memory


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("MINICPMV_"):
            monkeypatch.delenv(name)


def load(*arguments: str) -> Settings:
    return load_settings(arguments, Settings, command="serve")


def message(*arguments: str) -> str:
    with pytest.raises(InvalidSettings) as caught:
        load(*arguments)
    return str(caught.value)


def test_defaults_are_valid_and_serve_the_demo_to_this_machine_only() -> None:
    settings = load()
    assert (settings.model, settings.host, settings.port) == ("demo", "127.0.0.1", 8000)
    assert settings.api_keys == ()


def test_flags_in_kebab_case() -> None:
    settings = load("--model", "owner/name", "--port", "0", "--kv-cache-memory", "2GiB", "--special-tokens-in-text")
    assert (settings.model, settings.port) == ("owner/name", 0)
    assert settings.kv_cache_memory == 2 * 2**30
    assert settings.special_tokens_in_text


def test_flag_beats_environment_beats_yaml_beats_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.yaml"
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    config.write_text("port: 3\nhost: yaml\nmodel: yaml\n")
    for name, value in {"port": "4", "host": "secret", "model": "secret", "revision": "secret"}.items():
        (secrets / f"MINICPMV_{name.upper()}").write_text(value)
    monkeypatch.setenv("MINICPMV_SECRETS_DIR", str(secrets))
    monkeypatch.setenv("MINICPMV_CONFIG", str(config))
    monkeypatch.setenv("MINICPMV_PORT", "2")
    monkeypatch.setenv("MINICPMV_HOST", "environment")
    settings = load("--port", "1")
    assert (settings.port, settings.host, settings.model, settings.revision) == (1, "environment", "yaml", "secret")


def test_config_flag_names_the_yaml_file(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("max_images: 3\napi_keys: [one, two]\n")
    settings = load("--config", str(config))
    assert settings.max_images == 3
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]


def test_file_of_comments_changes_nothing(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("# port: 1\n")
    assert load("--config", str(config)).model_dump(exclude={"config"}) == load().model_dump(exclude={"config"})


def test_keys_from_the_environment_are_a_json_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINICPMV_API_KEYS", '["one", "two"]')
    assert [key.get_secret_value() for key in load().api_keys] == ["one", "two"]


def test_printed_settings_hide_the_keys() -> None:
    settings = load("--api-keys", '["hush"]')
    assert "hush" not in repr(settings)
    assert "hush" not in settings.model_dump_json()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--port", "70000"], "port"),
        (["--port", "x"], "port"),
        (["--weights", "int3"], "weights"),
        (["--device", "gpu"], "device"),
        (["--model", ""], "model"),
        (["--kv-cache-memory", "2 potatoes"], "kv_cache_memory"),
        (["--image-cache-memory", "1023KiB"], "image_cache_memory"),
        (["--memory", "0"], "memory"),
        (["--memory", "lots"], "memory"),
        (["--kv", "int4"], "kv"),
        (["--drain-timeout-s", "-1"], "drain_timeout_s"),
        (["--client-timeout-s", "0"], "client_timeout_s"),
        (["--max-requests", "0"], "max_requests"),
        (["--max-parts", "0"], "max_parts"),
        (["--max-image-pixels", "200000000"], "max_image_pixels"),
        (["--api-keys", '["good", " "]'], "api_keys"),
        (["--log-level", "loud"], "log_level"),
        (["--remote-images", "on"], "remote_images"),
        (["--remote-images", "listed", "--remote-image-hosts", '["https://example.com"]'], "remote_image_hosts"),
        (["--remote-images", "listed", "--remote-image-hosts", '["10.1"]'], "remote_image_hosts"),
        (["--remote-image-timeout-s", "0"], "remote_image_timeout_s"),
        (["--max-remote-redirects", "4"], "max_remote_redirects"),
        (["--max-remote-fetches", "0"], "max_remote_fetches"),
    ],
)
def test_wrong_flag_is_named(arguments: list[str], name: str) -> None:
    assert message(*arguments).startswith(f"{name}: ")


def test_every_wrong_setting_has_its_line() -> None:
    assert [line.partition(":")[0] for line in message("--port", "x", "--max-images", "-1").splitlines()] == [
        "port",
        "max_images",
    ]


def test_wrong_value_is_not_repeated() -> None:
    """It may be a secret that slipped into the wrong place."""
    assert "hush" not in message("--port", "hush")


def test_image_buffer_must_hold_one_request() -> None:
    text = message("--max-images", "100")
    assert "image_buffer_memory" in text
    assert "max_images" in text


def test_every_sequence_must_be_able_to_decode_in_a_step() -> None:
    text = message("--max-step-tokens", "16", "--max-num-sequences", "17")
    assert "max_step_tokens" in text
    assert "max_num_sequences" in text


def test_unknown_key_in_yaml_is_named(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("colour: red\n")
    assert message("--config", str(config)).startswith("colour: ")


@pytest.mark.parametrize("content", [b"port: [", b"- just\n- a list\n", b"7", b"\xff\xfe\x00"])
def test_file_that_holds_no_settings_is_named(tmp_path: Path, content: bytes) -> None:
    config = tmp_path / "config.yaml"
    config.write_bytes(content)
    text = message("--config", str(config))
    assert text.startswith("config: ")
    assert str(config) in text


def test_environment_that_is_no_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINICPMV_API_KEYS", "just-a-key")
    assert "api_keys" in message()


def test_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "missing"
    assert str(missing) in message("--config", str(missing))
    monkeypatch.setenv("MINICPMV_SECRETS_DIR", str(missing))
    assert str(missing) in message()


def test_unknown_flag_ends_with_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load("--colour", "red")
    assert caught.value.code == 2
    assert "--colour" in capsys.readouterr().err


def test_help_lists_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load("--help")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert "minicpmv serve" in printed
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in printed


def test_settings_cannot_be_changed() -> None:
    settings = load()
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1000", 1000),
        ("8GiB", 8 * 2**30),
        ("1.5 kb", 1500),
        (" 512 MiB ", 512 * 2**20),
        ("2B", 2),
        (7, 7),
        (None, None),
    ],
)
def test_sizes(text: Any, value: Any) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 parsec", "1e9", "0x10"])
def test_texts_that_are_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("8GiB", 8 * 2**30), ("0.9", 0.9), (0.9, 0.9), ("1", 1.0), (2**30, 2**30), ("1073741824", 2**30), (None, None)],
)
def test_memory_is_a_size_or_a_share(value: Any, expected: Any) -> None:
    found = parse_memory(value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("value", ["-0.5", 0, "nan", "0.5 cards"])
def test_values_that_are_no_memory(value: Any) -> None:
    with pytest.raises(ValueError, match="is n"):
        parse_memory(value)


def test_memory_flag() -> None:
    assert load("--memory", "8GiB").memory == 8 * 2**30
    assert load("--memory", "0.85").memory == 0.85


def test_remote_pictures_are_off_until_the_operator_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().remote_images == "off"
    listed = load("--remote-images", "listed", "--remote-image-hosts", '["example.com", "*.example.com"]')
    assert listed.remote_image_hosts == ("example.com", "*.example.com")
    assert load("--remote-images", "open").remote_images == "open"
    monkeypatch.setenv("MINICPMV_REMOTE_IMAGES", "listed")
    monkeypatch.setenv("MINICPMV_REMOTE_IMAGE_HOSTS", '["example.com"]')
    assert load().remote_image_hosts == ("example.com",)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--remote-images", "listed"],
        ["--remote-image-hosts", '["example.com"]'],
        ["--remote-images", "open", "--remote-image-hosts", '["example.com"]'],
    ],
)
def test_a_list_of_hosts_that_would_not_count_is_refused(arguments: list[str]) -> None:
    assert "remote_images listed and remote_image_hosts" in message(*arguments)
