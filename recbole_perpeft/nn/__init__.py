"""Networks of torch that know nothing of RecBole."""
