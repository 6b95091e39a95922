import pytest

from server.bench.load import ClosedLoop, Extent, OpenLoop
from server.bench.objective import Objective
from server.bench.options import parse_options
from server.bench.pictures import PictureSize
from server.bench.prompts import Span
from server.bench.workload import PictureMix


def test_defaults():
    options = parse_options([])
    (target,) = options.targets
    assert (target.name, target.url, dict(target.extra)) == ("server", "http://127.0.0.1:8000", {})
    assert options.schedule.loads == [ClosedLoop(1)]
    assert options.schedule.extent == Extent(10, None)
    assert (options.prompt_tokens, options.prompt_words, options.answer_tokens) == (Span(256, 256), None, Span(64, 64))
    assert options.pictures is options.objective is options.api_key is options.self_test_clients is None
    assert options.body_fields == {}
    assert options.given["seed"] == options.seed
    assert parse_options([]).seed != options.seed


def test_everything_given(tmp_path):
    key = tmp_path / "key"
    key.write_text("secret\n")
    options = parse_options(
        [
            *["--target", "a=http://one:1", "--target", "b=https://two/v1", "--target-extra", 'b={"n_probs": 0}'],
            *["--model", "m", "--api-key-file", str(key), "--wait", "2m", "--timeout", "90s"],
            *["--clients", "1", "8", "--requests", "40", "--rounds", "3", "--warmup", "5"],
            *["--prompt-words", "20-30", "--shared-words", "10", "--distinct-prompts", "4", "--max-tokens", "8-16"],
            *["--ignore-eos", "--temperature", "0", "--extra", '{"top_k": 1}'],
            *["--picture", "448x448:3,900x600", "--picture-share", "0.5", "--pictures-per-request", "2"],
            *["--picture-reuse", "0.25", "--picture-format", "jpeg", "--seed", "9"],
            *["--objective", "ttft=2s", "--json", "r.json", "--plot", "p.svg", "--fail-on-error"],
        ]
    )
    assert [(target.name, target.endpoint.host, dict(target.extra)) for target in options.targets] == [
        ("a", "one", {}),
        ("b", "two", {"n_probs": 0}),
    ]
    assert (options.api_key, options.wait_s, options.timeout_s) == ("secret", 120.0, 90.0)
    assert options.schedule.loads == [ClosedLoop(1), ClosedLoop(8)]
    assert (options.schedule.extent, options.schedule.rounds, options.schedule.warm_up_requests) == (
        Extent(40, None), 3, 5,
    )  # fmt: skip
    assert (options.prompt_tokens, options.prompt_words) == (None, Span(20, 30))
    assert options.body_fields == {"model": "m", "temperature": 0.0, "ignore_eos": True, "top_k": 1}
    sizes = (PictureSize(448, 448, 3.0), PictureSize(900, 600, 1.0))
    assert options.pictures == PictureMix(sizes, "jpeg", 0.5, 2, 0.25)
    assert (options.objective, options.seed, options.fail_on_error) == (Objective(ttft_s=2.0), 9, True)
    assert (options.json_file.name, options.plot_file.name) == ("r.json", "p.svg")
    # As they were written, and no secret among them.
    assert options.given["prompt_words"] == "20-30"
    assert options.given["picture"] == "448x448:3,900x600:1"
    assert "secret" not in str(options.given)


@pytest.mark.parametrize(
    ("arguments", "extent"),
    [
        (["--clients", "2", "6"], Extent(60, None)),
        (["--rate", "3"], Extent(100, None)),
        (["--duration", "30s"], Extent(None, 30.0)),
        (["--duration", "30s", "--requests", "7"], Extent(7, 30.0)),
    ],
)
def test_how_long_a_load_lasts(arguments, extent):
    assert parse_options(arguments).schedule.extent == extent


def test_open_loops():
    assert parse_options(["--rate", "0.5", "2"]).schedule.loads == [OpenLoop(0.5), OpenLoop(2.0)]


def test_self_test_takes_its_clients():
    assert parse_options(["--self-test"]).self_test_clients == 16
    assert parse_options(["--self-test", "--clients", "2", "3"]).self_test_clients == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--clients", "0"], "too few"),
        (["--clients", "many"], "whole number"),
        (["--clients", "2", "--rate", "1"], "two kinds of load"),
        (["--rate", "0"], "above 0"),
        (["--rate", "fast"], "not a number"),
        (["--picture-reuse", "1.5"], "share from 0 to 1"),
        (["--picture-share", "0.5"], "needs --picture"),
        (["--picture", "big"], "448x448:3"),
        (["--duration", "60"], "200ms, 2s or 1m"),
        (["--objective", "speed=1s"], "ttft=2s"),
        (["--prompt-tokens", "8", "--prompt-words", "8"], "not allowed with"),
        (["--prompt-words", "12", "--shared-words", "8"], "exceed --shared-words by 5"),
        (["--extra", "{"], "not JSON"),
        (["--extra", "[1]"], "not a JSON object"),
        (["--extra", '{"stream": false}'], "stream is set by this program"),
        (["--url", "nowhere"], "not a server's URL"),
        (["--target", "http://one"], "NAME=VALUE"),
        (["--target", "a=http://one", "--target", "a=http://two"], "same name"),
        (["--target-extra", "b={}"], "names no target: b"),
        (["--target-extra", "server=1"], "not a JSON object"),
        (["--api-key-file", "no/such/file"], "cannot read"),
        (["--colour"], "unrecognized"),
    ],
)
def test_wrong_flags_are_refused_in_a_line(capsys, arguments, words):
    with pytest.raises(SystemExit) as caught:
        parse_options(arguments)
    assert caught.value.code == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("minicpmv bench: error: ")
    assert words in last


@pytest.mark.parametrize("content", ["", "two words", "one\ntwo", "k\u00e9y"])
def test_a_file_that_holds_no_key_is_refused(tmp_path, capsys, content):
    (tmp_path / "key").write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit):
        parse_options(["--api-key-file", str(tmp_path / "key")])
    assert "does not hold one key" in capsys.readouterr().err
