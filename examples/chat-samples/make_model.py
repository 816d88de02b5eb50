"""Gives a copy of the bundled target a chat template: the demo pair was not made for chats and has none.

python make_model.py
"""

from __future__ import annotations

import shutil
from pathlib import Path

import specbatch

TEMPLATE = """\
{%- for message in messages -%}
# {{ message.role }}: {{ message.content }}
{% endfor -%}
{%- if add_generation_prompt -%}
# assistant:{% endif -%}
"""


def main() -> None:
    """Write the folder chat-target."""
    bundled = Path(specbatch.__file__).parent / "assets" / "code-pair" / "target"
    shutil.copytree(bundled, "chat-target", dirs_exist_ok=True)
    Path("chat-target", "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    print("chat-target: the bundled target with a chat template")


if __name__ == "__main__":
    main()
