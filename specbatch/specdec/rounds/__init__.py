"""One round: prompts read, drafts proposed and scored, tokens committed; by the plain loop or as captured graphs."""
