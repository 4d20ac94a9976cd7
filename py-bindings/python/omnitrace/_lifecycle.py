"""What a process does at a fork and at its end."""

from __future__ import annotations

import atexit

# Imported before our hook is registered, so run after it: a fork takes its lock only when our
# thread, which may be logging something, is out of the way.
import logging  # noqa: F401
import multiprocessing.util
import os

from ._omnitrace import _after_fork_in_child, _after_fork_in_parent, _before_fork, shutdown


def _deliver_at_exit(_: object = None) -> None:
    # multiprocessing ends its children with os._exit, which skips atexit, but
    # runs its own finalizers; a forked child has forgotten its parent's.
    multiprocessing.util.Finalize(None, shutdown, exitpriority=0)


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
multiprocessing.util.register_after_fork(_deliver_at_exit, _deliver_at_exit)
if multiprocessing.parent_process() is not None:
    _deliver_at_exit()
atexit.register(shutdown)
