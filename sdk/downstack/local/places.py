"""Where the set-up leaves what a local run needs: the broker's jars and the packaged model."""

import os
from pathlib import Path

import downstack
from downstack.local.folder import MODELS_NAME, DataFolder, find_folder

_TOOLS = Path(".tools")
_JARS = Path("kafka/libs")
PACKAGED_NAME = "smollm2-135m"


def tools() -> Path:
    """The set-up's folder of tools: in the work folder or above it, or in the checkout that this module is from."""
    checkout = Path(downstack.__file__).parents[2]
    places = [place / _TOOLS for place in (Path.cwd(), *Path.cwd().parents, checkout)]
    return next((place for place in places if place.is_dir()), places[-1])


def kafka_jars() -> Path:
    """The broker's jars: where the environment says, or among the tools."""
    asked = os.environ.get("DOWNSTACK_KAFKA_JARS", "")
    return Path(asked) if asked else tools() / _JARS


def packaged_model(folder: DataFolder) -> Path:
    """Where the packaged model is, or is to be unpacked: in the data folder, or in the one around the work folder."""
    here = folder.path / MODELS_NAME / PACKAGED_NAME
    shared = find_folder(None, start=Path.cwd()) / MODELS_NAME / PACKAGED_NAME
    return here if here.is_dir() else shared
