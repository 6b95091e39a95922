"""Imports point one way, and torch stays behind one door."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers")

# Layer -> its modules (by prefix; the longest one counts), and the layers that they may import besides their own.
LAYERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # What the checkpoint defines. Knows nothing of the server.
    "model": (("model.config", "model.formats", "model.step", "model.tokenizer", "model.slicing", "model.prompt"), ()),
    # Kernels for CPUs: tensors in, tensors out.
    "native kernels": (("model.native",), ()),
    # Kernels for GPUs likewise.
    "GPU kernels": (("model.gpu",), ()),
    "networks": (("model.nn",), ("native kernels", "GPU kernels", "model")),
    "runtime": (("model.runtime",), ("networks", "native kernels", "GPU kernels", "model")),
    # How the bundled demo is made: drawing and questions, without torch; then its training; and its exam.
    "demo pictures": (
        (
            "model.demo.draw",
            "model.demo.exam",
            "model.demo.fonts",
            "model.demo.phrases",
            "model.demo.questions",
            "model.demo.scene",
            "model.demo.targets",
            "model.demo.tokenizer",
            "model.demo.words",
        ),
        ("model",),
    ),
    "demo training": (
        (
            "model.demo.aim",
            "model.demo.export",
            "model.demo.lessons",
            "model.demo.muon",
            "model.demo.net",
            "model.demo.recipe",
            "model.demo.train",
        ),
        ("demo pictures", "runtime", "networks", "model"),
    ),
    "demo exam": (("model.demo.curve", "model.demo.evaluate"), ("demo pictures", "model")),
    # Words that the API and the engine share.
    "words": (
        (
            "server.demonstration",
            "server.errors",
            "server.hub",
            "server.image",
            "server.image_worker",
            "server.log",
            "server.notes",
            "server.pace",
            "server.request",
            "server.sampling_defaults",
            "server.settings",
            "server.version",
            "server.web_url",
        ),
        ("model",),
    ),
    # The way to other hosts: nothing else here opens a connection to one.
    "fetch": (("server.fetch",), ("words",)),
    "messages": (("server.engine.channel", "server.engine.transport", "server.engine.arena"), ("model",)),
    # What a grammar lets follow: masks over the vocabulary.
    "grammar": (("server.engine.forced", "server.engine.grammar", "server.engine.grammar_limits"), ("model",)),
    # Compiling one: in a thread of the engine, and before that in a process that can be killed.
    "compile": (("server.engine.grammar_child", "server.engine.grammar_compiler"), ("grammar",)),
    # The engine's own logic: integers only, no clock, no I/O.
    "schedule": (
        (
            "server.engine.beam_planner",
            "server.engine.beam_search",
            "server.engine.blocks",
            "server.engine.drafter",
            "server.engine.encoding",
            "server.engine.host_tier",
            "server.engine.limits",
            "server.engine.loop",
            "server.engine.ngrams",
            "server.engine.past_answers",
            "server.engine.prefix_cache",
            "server.engine.scheduler",
            "server.engine.sequence",
            "server.engine.stats",
            "server.engine.vision_cache",
        ),
        ("grammar", "messages", "model"),
    ),
    # The one door to torch.
    "worker": (("server.engine.worker",), ("compile", "grammar", "schedule", "runtime", "messages", "words", "model")),
    # The API process's half of the engine, and its front.
    "prepare": (
        ("server.engine.picture_workers", "server.engine.pictures", "server.engine.prepare", "server.engine.room"),
        ("messages", "words", "model"),
    ),
    "watch": (
        (
            "server.engine.answer",
            "server.engine.detokenizer",
            "server.engine.grammar_check",
            "server.engine.process",
            "server.engine.repetition",
            "server.engine.session",
            "server.engine.supervisor",
            "server.engine.supply",
            "server.engine.waiting_line",
        ),
        ("prepare", "messages", "words", "model"),
    ),
    "client": (("server.engine.client",), ("watch", "prepare", "messages", "words", "model")),
    "metrics": (("server.metrics", "server.vllm_metrics"), ("messages", "words")),
    # Spans, from what was noted of a request.
    "tracing": (("server.tracing",), ("words",)),
    # The HTTP layer: to it the engine is a client that turns a request into a prepared one, and that into events.
    "api": (("server.api", "server.listener"), ("client", "prepare", "metrics", "tracing", "fetch", "words")),
    # The composition root.
    "serve": (
        ("server.banner", "server.life", "server.serve"),
        ("api", "client", "watch", "prepare", "metrics", "tracing", "messages", "words", "model"),
    ),
    # A program of its own that asks servers over HTTP, ours as any other: it knows nothing of the rest.
    "bench": (("server.bench",), ()),
    # Likewise.
    "batch": (("server.batch",), ()),
    # `selftest` alone computes in its own process, and imports what it needs when it is called. Of the runtime `plan`
    # uses the part that plans, which is without torch.
    "command line": (("server.__main__", "server.plan"), ("serve", "batch", "bench", "runtime", "words", "model")),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for folder in ("model", "server") for path in sorted((ROOT / folder).rglob("*.py"))}
PACKAGES = {name for name, path in SOURCES.items() if path.name == "__init__.py"}
MODULES = sorted(set(SOURCES) - PACKAGES)


def is_within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def imported_modules(name: str) -> set[str]:
    """The project's modules that an import statement of this one names, wherever in the file it stands."""
    found = set()
    for node in ast.walk(ast.parse(SOURCES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative imports hide the direction"
            # `from server.api import errors` names a module, `from server.errors import ApiError` a thing in one.
            members = {f"{node.module}.{alias.name}" for alias in node.names} & SOURCES.keys()
            found |= members or {str(node.module)}
    # A package itself is empty, so naming one imports nothing.
    return {other for other in found - PACKAGES if is_within(other, "model") or is_within(other, "server")}


def layer_of(name: str) -> str:
    prefixes = {
        prefix: layer for layer, (modules, _) in LAYERS.items() for prefix in modules if is_within(name, prefix)
    }
    assert prefixes, f"{name} has no place in LAYERS"
    return prefixes[max(prefixes, key=len)]


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    layer = layer_of(name)
    allowed = {layer, *LAYERS[layer][1]}
    assert {other: layer_of(other) for other in imported_modules(name) if layer_of(other) not in allowed} == {}


def test_the_table_names_what_exists():
    named = {prefix for modules, _ in LAYERS.values() for prefix in modules}
    assert named - SOURCES.keys() == set()


def is_torch_free(name: str) -> bool:
    with_torch = (
        "model.gpu",
        "model.native",
        "model.nn",
        "model.runtime",
        "server.engine.worker",
        *LAYERS["demo training"][0],
    )
    return not any(is_within(name, torch_side) for torch_side in with_torch)


BATCHES = {
    "model": [name for name in MODULES if is_within(name, "model") and is_torch_free(name)],
    "engine": [name for name in MODULES if is_within(name, "server.engine") and is_torch_free(name)],
    "api": [name for name in MODULES if is_within(name, "server.api")],
    "batch": [name for name in MODULES if is_within(name, "server.batch")],
    "bench": [name for name in MODULES if is_within(name, "server.bench")],
    "fetch": [name for name in MODULES if is_within(name, "server.fetch")],
    "server": [name for name in MODULES if is_within(name, "server") and name.count(".") == 1],
}
IMPORT_EACH = f"""
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    loaded = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]
    if loaded:
        sys.exit(f"{{name}} loads {{loaded}}")
"""


@pytest.mark.parametrize("batch", BATCHES)
def test_no_torch_is_loaded_indirectly(batch):
    # One interpreter a batch, which looks after each import: starting one for each module would take a minute.
    assert BATCHES[batch]
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_EACH, *BATCHES[batch]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_every_init_file_is_empty():
    assert [name for name in sorted(PACKAGES) if SOURCES[name].read_text(encoding="utf-8")] == []
