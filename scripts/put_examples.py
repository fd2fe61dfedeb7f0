"""Write examples/*.patch into ARCHITECTURE.md, each between its two marks.

    python scripts/put_examples.py
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main():
    guide = ROOT / "ARCHITECTURE.md"
    text = guide.read_text()
    for patch in sorted((ROOT / "examples").glob("*.patch")):
        mark = f"<!-- examples/{patch.name} -->"
        head, found, rest = text.partition(mark)
        if not found:
            raise SystemExit(f"error: {guide.name} has no mark {mark}")
        text = f"{head}{mark}\n```diff\n{patch.read_text()}```\n{mark}{rest.partition(mark)[2]}"
    guide.write_text(text)


if __name__ == "__main__":
    main()
