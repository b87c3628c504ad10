"""A run's log as TensorBoard's event files, by torch's own writer: train.py --log tensorboard."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from mingpt_prefix.checkpoints.run_folder import RunFolder
from mingpt_prefix.cli.train_args import TrainArgs
from mingpt_prefix.errors import ConfigError


def wants_board(args: TrainArgs) -> bool:
    """Whether event files are written: if --log says so, or a resumed run has some.

    Raises:
        ConfigError: if they are, and the package tensorboard is missing.
    """
    has_some = args.resume is not None and RunFolder(args.resume).tensorboard.is_dir()
    if args.log is None and not has_some:
        return False
    if find_spec("tensorboard") is None:
        raise ConfigError(
            "--log tensorboard needs the package tensorboard: pip install tensorboard"
        )
    return True


@contextmanager
def open_board(run: RunFolder | None, step: int) -> Iterator[Callable[[dict], None]]:
    """What takes the lines of log.jsonl after `step`, and makes a curve of each of their numbers;
    without a `run` it drops them."""
    if run is None:
        yield lambda line: None
        return
    from torch.utils.tensorboard import SummaryWriter

    # Steps that a killed process took after its last checkpoint come again.
    with SummaryWriter(str(run.tensorboard), purge_step=step + 1, flush_secs=10) as writer:

        def add(line: dict) -> None:
            for name in line.keys() - {"step"}:
                writer.add_scalar(name, line[name], line["step"])

        yield add
