"""The whole platform on one machine, without containers: `rlt up`, `rlt status`, `rlt logs`, `rlt down`, `rlt demo`."""
