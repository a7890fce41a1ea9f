"""Which version of the on-disk layout a data folder has."""

from pathlib import Path

# Goes up when a new Downstack cannot use the data folders of an older one.
LAYOUT_VERSION = 1
_MARKER = "DOWNSTACK_LAYOUT"


class LocalError(Exception):
    """A local part could not be started or stopped. The message is one sentence for people."""


class DataFolderVersionError(LocalError):
    """The data folder was written by another version of Downstack, PostgreSQL or Kafka."""


def claim_folder(folder: Path) -> None:
    """Make `folder` and mark it as ours, or raise DataFolderVersionError if another version owns it."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / _MARKER
    if not marker.exists():
        marker.write_text(f"{LAYOUT_VERSION}\n")
    found = marker.read_text().strip()
    if found != str(LAYOUT_VERSION):
        raise DataFolderVersionError(
            f"The data folder {folder} has layout {found or 'unknown'}, this Downstack needs layout {LAYOUT_VERSION}: "
            "move it away, or use the version that made it."
        )
