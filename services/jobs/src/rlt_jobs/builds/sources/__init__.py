"""What a build may be read from: JSON lines, CSV and Parquet of an upload or a path, and data sets of the hub."""
