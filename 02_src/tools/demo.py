"""The demo: a small model on this machine explains forty modules of Python's standard library.

Run it with `make demo`. Its input is real, and every machine has it: the modules' own docstrings.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path("04_logs/demo")
MODEL = "smollm2-135m"
LONGEST_DOCSTRING = 320  # characters: a small model loses the thread in more
SHOWN = ("bisect", "calendar", "csv", "heapq")
MODULES = """
argparse ast asyncio base64 bisect calendar cmd code collections configparser contextlib copy csv dataclasses decimal
difflib dis email enum fileinput fnmatch fractions functools getopt glob gzip hashlib heapq hmac inspect json keyword
linecache locale logging mimetypes numbers optparse pathlib pickle pprint queue random re sched secrets selectors shelve
shlex shutil statistics string struct subprocess tarfile tempfile textwrap threading timeit token tokenize trace
traceback types unittest uuid venv warnings weakref webbrowser zipfile
""".split()  # noqa: SIM905 - as a list it would fill the screen
COUNT = 40


def first_paragraph(module: str) -> str | None:
    """Return how a module's docstring begins; read from its source, since importing some modules does things."""
    spec = find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    if not docstring:
        return None
    # A first paragraph of three words is a title: the second one is wanted as well.
    return " ".join(" ".join(docstring.split("\n\n")[:2]).split())[:LONGEST_DOCSTRING]


def write_input(path: Path) -> int:
    """Write a row for each of the first forty modules that say what they are for; return how many there are."""
    told = [(module, text) for module in MODULES if (text := first_paragraph(module))][:COUNT]
    rows = [
        {
            "request_id": module,
            "prompt": f"This is what the documentation of Python's module '{module}' says:\n\n{text}\n\n"
            f"In one short sentence: what would a programmer use '{module}' for?",
            "max_tokens": 48,
        }
        for module, text in told
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return len(rows)


def gateway(*arguments: str) -> None:
    """Run the command as a user would, and show it."""
    print(f"\n$ llm-gateway {' '.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "llm_gateway", *arguments], cwd=ROOT, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(done.returncode)


def show_answers(path: Path) -> None:
    """Print a few of the answers."""
    results = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    answers = {each["request_id"]: each["response"]["content"] for each in results if each["status"] == "ok"}
    print("\nSome of the answers:")
    for module in [each for each in SHOWN if each in answers]:
        print(f"\n  {module}: {' '.join(answers[module].split())}")


LAST_WORDS = f"""
The model has 135 million parameters and is often wrong; it shows that everything runs, not what models can do.
To ask a better one, with a key of OpenAI:

  OPENAI_API_KEY=sk-… {{command}} run {FOLDER}/modules.jsonl -o answers.jsonl --model gpt-4o-mini

or, where Ollama serves one (ollama pull llama3.2), with --model local-llama and no key. Another host or model goes into
a file llm-gateway.toml:

  [providers.ollama]
  base_url = "http://127.0.0.1:11434"
  [models.local-llama]
  provider = "ollama"
  model = "qwen3:8b"

All results: {FOLDER}/answers.jsonl. What the gateway did, as tables: {{command}} report
"""


def main() -> None:
    """Build the input, get the model, run, and show."""
    (ROOT / FOLDER).mkdir(parents=True, exist_ok=True)
    rows = write_input(ROOT / FOLDER / "modules.jsonl")
    print(f"{rows} modules of the standard library are in {FOLDER}/modules.jsonl, a question on each.")
    gateway("pull", MODEL)
    gateway("run", f"{FOLDER}/modules.jsonl", "-o", f"{FOLDER}/answers.jsonl", "--model", MODEL, "--force")
    show_answers(ROOT / FOLDER / "answers.jsonl")
    print(LAST_WORDS.format(command=".venv/bin/llm-gateway"))


if __name__ == "__main__":
    main()
