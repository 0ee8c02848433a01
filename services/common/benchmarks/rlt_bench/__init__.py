"""What the benchmarks of the servers share: timing, records, the page, and starting programs."""
