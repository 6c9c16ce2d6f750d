"""Other processes: workers, Ray, and that none of them outlives this one."""
