"""Foreign text in messages: short, on one line, with nothing in it that a terminal acts on."""


def printable(text: str, limit: int = 40) -> str:
    """Cut foreign text to `limit` characters, with what a terminal cannot show escaped."""
    shown = escape(text[:limit])
    return shown if len(shown) <= limit and len(text) <= limit else shown[: limit - 1] + "…"


def escape(text: str) -> str:
    """Text with each character that cannot be shown as its escape, `\\n` for a line end."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
