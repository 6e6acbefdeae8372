"""The browser of this machine, if there is one: tests/browser opens the page in it, and what it looks at there the
server's tests need not run again."""

import shutil

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
