"""Write the tables of flags of the original scripts into docs/from_old_scripts.md. Run it after changing a table."""

from pathlib import Path

from glmkit.cli.old_scripts.page import all_tables

PAGE = Path(__file__).resolve().parents[1] / "docs" / "from_old_scripts.md"
BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"


def main() -> None:
    """Replace what stands between the two marks."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{all_tables()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
