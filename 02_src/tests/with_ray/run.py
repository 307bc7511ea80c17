"""`make test-ray`: AskGateway in a real Ray, in an environment of its own, against a local emulator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.environments import ROOT, peer_python
from bench.suite import say
from docs.pages import blocks_of, matches, provider

from fakes.emulator import Call, Reply
from fakes.emulator_thread import emulator_in_a_thread

PAGE = ROOT / "00_docs/how-to/ray.md"
HERE = Path(__file__).parent
KEY = "sk-canary-with-ray"


def answer(call: Call) -> Reply:
    """Answer as the pages do, but refuse who asks for it."""
    if "Refuse" in str(call.body["messages"][-1]["content"]):
        return Reply(status=400)
    return provider(call)


def main() -> None:
    """Run the page's example and the check of all formats; leave with an error where one does not do what it should."""
    python = peer_python("ray", say)
    blocks = list(blocks_of(PAGE))
    example = next(block.text for block in blocks if block.title == "ask_with_ray.py")
    expected = next(block.text for block in blocks if block.language == "text")
    with TemporaryDirectory() as folder, emulator_in_a_thread() as emulator:
        emulator.answer = answer
        environment = os.environ | {
            "PYTHONPATH": str(ROOT / "02_src"),
            "OPENAI_BASE_URL": f"{emulator.url}/v1",
            "OPENAI_API_KEY": KEY,
            "HOME": folder,  # where Ray leaves things
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        }

        def run(script: Path) -> str:
            say(f"==> {script.name}")
            command = [python, script]
            done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
            if done.returncode:
                sys.exit(f"{script.name} failed:\n{done.stdout}")
            return done.stdout

        page = Path(folder) / "ask_with_ray.py"
        page.write_text(example, encoding="utf-8")
        printed = "\n".join(sorted(line for line in run(page).splitlines() if line[:1].isdigit()))
        if not matches(expected, printed):
            sys.exit(f"The page does not print what it says, but:\n{printed}")
        run(HERE / "formats.py")
    say("The page and all formats do what they say.")


if __name__ == "__main__":
    main()
