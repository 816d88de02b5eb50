"""How many drafts a row gets, and from whom: arithmetic over what was measured, unable to change the text."""
