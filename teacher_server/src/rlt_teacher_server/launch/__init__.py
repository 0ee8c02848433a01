"""vLLM servers that the teacher server starts itself: how they are told what to do, and how they are kept running."""
