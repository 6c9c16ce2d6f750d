"""VIP5: a text-to-text model that recommends and explains from prompts with visual tokens."""
