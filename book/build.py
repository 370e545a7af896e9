"""Build the book: `make book`, or `python -m book.build` in an environment of your own.

Executes the chapters that changed, stages the sources in `_build/src`, lets Jupyter Book turn them
into `_build/html` with every warning an error, and checks the pages. If nothing at all changed,
only the checks run.
"""

import gc
import hashlib
import os
import shutil
import subprocess
import sys
import time

from book.tools import toc
from book.tools.check import check_site
from book.tools.execute import ANSI, execute_all, hash_tree, records, shared_inputs
from book.tools.stage import stage

ROOT = toc.ROOT
BUILD = ROOT / "_build"
KEPT, SOURCE, HTML = BUILD / "executed", BUILD / "src", BUILD / "html"
STAMP, LOG = BUILD / "html.sha256", BUILD / "sphinx.log"
# Trees of pages are large and live to the end: to look for garbage in them finds none, and takes a
# third of the time of Sphinx and of the checks.
NO_GC = "import gc; gc.disable()"


def main() -> int:
    """Build, tell, and return the exit status."""
    clock = time.perf_counter()
    if lost := toc.missing():
        print(f"_toc.yml names pages that are not there: {', '.join(lost)}")
        return 1
    chapters = toc.chapters()
    if failed := execute_all(chapters, ROOT, KEPT):
        print(f"\nfailed: {', '.join(failed)} (the other chapters are kept)")
        return 1
    ran = records(chapters, KEPT)
    stage(ROOT, KEPT, ran, SOURCE)
    if not up_to_date() and not build_html():
        return 1
    if problems := check_site(HTML, toc.pages()):
        print("the built pages are not in order:", *problems, sep="\n    ")
        STAMP.unlink(missing_ok=True)
        return 1
    STAMP.write_text(fingerprint(), encoding="utf-8")
    print(f"\n{'chapter':<24} seconds  started (UTC)")
    for record in ran:
        print(f"{record['chapter']:<24} {record['seconds']:7.1f}  {record['started'][:16]}")
    print(f"built and checked in {time.perf_counter() - clock:.0f} s")
    print(f"front page: {(HTML / 'index.html').relative_to(ROOT)}")
    return 0


def fingerprint() -> str:
    """Hash of all that the pages are made from."""
    digest = hashlib.sha256(shared_inputs(ROOT).encode())
    hash_tree(SOURCE, digest)
    hash_tree(ROOT / "book/tools", digest)
    return digest.hexdigest()


def up_to_date() -> bool:
    """Whether the last good build was made from the same sources."""
    return (
        (HTML / "index.html").exists()
        and STAMP.exists()
        and STAMP.read_text(encoding="utf-8") == fingerprint()
    )


def build_html() -> bool:
    """Run Jupyter Book from a clean folder, for an incremental build forgets its warnings."""
    for old in (HTML, BUILD / ".doctrees"):
        shutil.rmtree(old, ignore_errors=True)
    STAMP.unlink(missing_ok=True)
    print("building the pages", flush=True)
    # This interpreter's tool, wherever its scripts lie; the book's Sphinx extension is in ROOT.
    tool = f"{NO_GC}; from jupyter_book.cli.main import main; main(prog_name='jupyter-book')"
    command = [sys.executable, "-c", tool, "build", str(SOURCE)]
    command += ["--path-output", str(ROOT), "-W", "-n", "--keep-going"]
    with LOG.open("w", encoding="utf-8") as log:
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=env).returncode
    if status:
        lines = ANSI.sub("", LOG.read_text(encoding="utf-8")).splitlines()
        told = [line for line in lines if "WARNING" in line or "ERROR" in line] or lines[-25:]
        print("Jupyter Book failed:", *told, sep="\n    ")
        print(f"whole log: {LOG.relative_to(ROOT)}")
    return status == 0


if __name__ == "__main__":
    gc.disable()  # as above
    sys.exit(main())
