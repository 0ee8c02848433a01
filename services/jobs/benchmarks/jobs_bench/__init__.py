"""What builds cost at size: the database's part alone, and whole builds before engines that keep a pace.

python -m jobs_bench flush       rows/s of the fenced write, by batch and by writers at once
python -m jobs_bench browse      pages and counts of ten million samples; writes the plans too
python -m jobs_bench claim       taking a shard of a hundred thousand that are ready, alone and sixteen at once
python -m jobs_bench submit      a million problems uploaded and imported: memory of the API and of the worker
python -m jobs_bench growth      what the same steps cost at 10 thousand, 100 thousand and a million problems
python -m jobs_bench export      MB/s of each format
python -m jobs_bench throughput  tokens/s of a build against the same engine driven bare
python -m jobs_bench report      the page, from the records
"""
