"""One run in a process of its own: reads a job from standard input, answers on standard output.

The process ends with its parent: it watches the other end of its standard input.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from recbole_perpeft.core.errors import PerPEFTError
from recbole_perpeft.core.whole import alone

PARENT_GONE = 3  # exit status


def main() -> int:
    """Carry out the job; the answer is `{"error": message or null}`."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with redirect_stdout(sys.stderr):
        error = carry_out(Path(job["folder"]), job["settings"])
    print(json.dumps({"error": error}), flush=True)
    return 0 if error is None else 1


def carry_out(folder: Path, settings: dict[str, Any]) -> str | None:
    """Start the run, continue it, or find it finished; two processes never work on one run.

    A finished run with a damaged file is continued from its last checkpoint, which writes all files anew.

    Args:
        folder: the run folder.
        settings: all settings of the run.

    Returns:
        What went wrong; None if the run is finished.
    """
    from recbole_perpeft.runs.folder import RESULT_FILE, SETTINGS_FILE
    from recbole_perpeft.runs.record import RunRecord
    from recbole_perpeft.runs.run import resume, run

    try:
        with alone(folder.parent / ".locks" / folder.name):
            record = RunRecord(folder)
            if record.finished:
                if record.damage() is None:
                    return None
                (folder / RESULT_FILE).unlink()
            if (folder / SETTINGS_FILE).is_file():
                here = ("data_path", "cache_folder", "use_gpu", "gpu_id", "show_progress")
                resume(folder, {key: settings[key] for key in here})
            else:
                run(config_dict=settings | {"run_folder": str(folder)})
    except (PerPEFTError, OSError, MemoryError) as error:
        return str(error) or type(error).__name__
    except Exception as error:  # a fault in one model must not end the comparison; the parent lists it
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


def _end_with_parent() -> None:
    # Nothing more comes through the pipe: reading returns when the parent closes it, or is gone. Unbuffered, because
    # a thread that holds the lock of sys.stdin would not let the interpreter end.
    os.read(sys.stdin.fileno(), 1)
    os._exit(PARENT_GONE)


if __name__ == "__main__":
    sys.exit(main())
