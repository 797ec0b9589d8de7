"""Which documents a corpus keeps and what is mended in them: rules, duplicates, contamination."""
