"""PerPEFT: one adapter a group of users, on a shared foundation model."""
