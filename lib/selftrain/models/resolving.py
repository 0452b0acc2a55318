"""From a name to what can be loaded: an embedded model, a local folder, or a hub model, with one clear line when it is none."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path

from selftrain.models.embedded import EMBEDDED, Embedded, ModelError
from selftrain.models.fetch import fetch
from selftrain.models.folder import first_line, kind_of, offline_asked
from selftrain.paths import shown


@dataclass(frozen=True)
class Resolved:
    """Where a model is: `path_or_name` for from_pretrained, `kind` instruct, base or embedder, `revision` the hub commit if any."""

    path_or_name: str
    kind: str
    display_name: str
    is_local: bool
    revision: str | None = None
    offline: bool = False
    is_embedded: bool = False


def resolve(name_or_path: str | Path) -> Resolved:
    """Find a model by embedded name (built if missing), local folder or hub name, without loading it.

    ModelError, in one line, for a folder that holds no model and for a hub model that is neither reachable nor cached.
    """
    name = str(name_or_path)
    if name in EMBEDDED:
        return _embedded(EMBEDDED[name])
    path = Path(name).expanduser()
    if path.is_dir():
        return _local(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or isinstance(name_or_path, Path):
        raise ModelError(f"{name}: no such folder; give a model folder, a hub name, or one of {', '.join(EMBEDDED)}")
    return _hub(name)


def _embedded(model: Embedded) -> Resolved:
    """An embedded model, built if its folder is missing. A folder that is there is never rebuilt behind the user's back."""
    folder = model.folder if model.folder.is_dir() else fetch(model.name)
    return Resolved(str(folder), model.kind, model.name, True, is_embedded=True)


def _local(path: Path) -> Resolved:
    """A folder: an embedded model's own folder keeps that model's name, kind and self-test."""
    for model in EMBEDDED.values():
        if path.resolve() == model.folder.resolve():
            return _embedded(model)
    if not (path / "config.json").is_file():
        hint = (
            "is a LoRA adapter: give its base model's folder"
            if (path / "adapter_config.json").is_file()
            else "give the folder that save_pretrained wrote"
        )
        raise ModelError(f"{shown(path)}: no config.json in this folder; {hint}")
    return Resolved(str(path), kind_of(path.resolve().name, _has_template(path)), path.resolve().name, True)


def _has_template(path: Path) -> bool:
    """Whether a folder's tokenizer files carry a chat template."""
    if (path / "chat_template.jinja").is_file():
        return True
    try:
        return bool(json.loads((path / "tokenizer_config.json").read_text()).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def _hub(name: str) -> Resolved:
    """A hub model: at its newest commit if the hub answers, else as cached on this machine."""
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    why = "HF_HUB_OFFLINE is set"
    if not offline_asked():
        try:
            info = HfApi().model_info(name, timeout=10)
            files = {sibling.rfilename for sibling in info.siblings or []}
            template = "chat_template.jinja" in files
            if not template and "tokenizer_config.json" in files:
                path = hf_hub_download(name, "tokenizer_config.json", revision=info.sha)
                template = _has_template(Path(path).parent)
            return Resolved(name, kind_of(name, template), name, False, info.sha)
        except Exception as error:  # the hub client raises its own errors and its HTTP library's
            why = f"the hub gave no answer: {first_line(error, 100)}"
    try:
        cached = try_to_load_from_cache(name, "config.json")
    except ValueError:  # not a possible hub name
        cached = None
    if isinstance(cached, str):
        folder = Path(cached).parent
        return Resolved(name, kind_of(name, _has_template(folder)), name, False, folder.name, True)
    near = difflib.get_close_matches(name.lower(), EMBEDDED, 1)
    hint = f"did you mean {near[0]}" if near else f"give a local folder or one of {', '.join(EMBEDDED)}"
    raise ModelError(f"{name}: not on this machine and {why}; {hint}")
