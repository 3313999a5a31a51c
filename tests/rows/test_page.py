"""The docs' table of forms is the registry's."""

from __future__ import annotations

from pathlib import Path

from dpo_diag.rows.page import page


def test_the_page_is_made_from_the_forms() -> None:
    file = Path(__file__).resolve().parents[2] / "docs" / "forms.md"
    assert file.read_text(encoding="utf-8") == page(), "python -m dpo_diag.rows.page docs/forms.md"
