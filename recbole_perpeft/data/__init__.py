"""What a run reads: titles, photos and logs, and batches of them."""
