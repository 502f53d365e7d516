"""The user's browser, where this machine has a screen to show one."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from pathlib import Path

#: They would take the terminal that the server was started in.
_IN_TERMINAL = ("www-browser", "links", "elinks", "lynx", "w3m")
_SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")


def open_page(url: str) -> bool:
    """Open an address in the browser without waiting for it; False where there is none with a window."""
    found = _with_window()
    if found is None:
        return False
    threading.Thread(target=found.open, args=(url,), name="browser", daemon=True).start()
    return True


def _with_window() -> webbrowser.BaseBrowser | None:
    if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in _SCREENS):
        return None
    try:
        found = webbrowser.get()
    except webbrowser.Error:
        return None
    return None if Path(str(found.name)).name in _IN_TERMINAL else found
