"""Where tokens come from: ids in, ids and log-probs out. Two engines behind one interface (`base.Engine`)."""
