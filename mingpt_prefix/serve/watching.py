"""A folder whose prefix files are served as they come, change and go.

    folder = WatchedFolder(Path("runs"), open_models(config), print)
    served = folder.scan()

They are the files `NAME.safetensors` in it, and the `prefix.safetensors` of the runs in it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from mingpt_prefix.checkpoints.run_folder import RunFolder
from mingpt_prefix.errors import ConfigError, MingptPrefixError, shown
from mingpt_prefix.serve.models import ServedModel, prefix_beside

Stamp = tuple[int, int, int]


class WatchedFolder:
    """The prefixes of `folder` on the model of the first of those `opened`, which have names and
    prefixes already; `tell` is told in a line what changes.

    Raises:
        ConfigError: if there is no such folder.
    """

    def __init__(
        self, folder: Path, opened: Sequence[ServedModel], tell: Callable[[str], None]
    ) -> None:
        if not folder.is_dir():
            raise ConfigError(f"--watch: {shown(folder)}: no such folder")
        self.folder, self.opened, self.tell = folder, opened, tell
        self._stamps: dict[Path, Stamp] = {}
        self._served: dict[Path, ServedModel] = {}

    def scan(self) -> list[ServedModel]:
        """What is in the folder now, but for copies of what was opened.

        A file that cannot be read (it may be half copied) leaves what was read of it before, and is
        tried again once it changes.
        """
        stamps = self._stamp_all()
        for path in self._served.keys() - stamps.keys():
            self.tell(f"{self._served.pop(path).name} is gone from {shown(self.folder)}")
        for path, stamp in stamps.items():
            if self._stamps.get(path) != stamp:
                self._load(path)
        self._stamps = stamps
        return [self._served[path] for path in stamps if path in self._served]

    def _stamp_all(self) -> dict[Path, Stamp]:
        in_runs = f"*/{RunFolder(self.folder).prefix_file.name}"
        paths = [*self.folder.glob("[!._]*.safetensors"), *self.folder.glob(in_runs)]
        stamps = {}
        for path in sorted(paths):
            try:
                is_at = path.stat()
            except OSError:  # gone meanwhile
                continue
            stamps[path] = (is_at.st_mtime_ns, is_at.st_size, is_at.st_ino)
        return stamps

    def _load(self, path: Path) -> None:
        others = [served for other, served in self._served.items() if other != path]
        taken = {served.name for served in (*self.opened, *others)}
        try:
            served = prefix_beside(path, self.opened[0].pipeline, taken)
        except MingptPrefixError as error:
            self.tell(str(error))
            return
        if any(_are_equal(served, other) for other in self.opened):
            self._served.pop(path, None)
        else:
            self._served[path] = served
            self.tell(f"serving {served.name}, from {shown(path)}")


def _are_equal(one: ServedModel, other: ServedModel) -> bool:
    """Whether they are the same prefix of the same model."""
    a, b = one.pipeline, other.pipeline
    same_way = a.model is b.model and (a.text_format, a.placement) == (b.text_format, b.placement)
    return same_way and b.prefix is not None and torch.equal(a.prefix.kv, b.prefix.kv)
