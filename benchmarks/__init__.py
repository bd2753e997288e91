"""Speed against peers, as ratios within one process. Each script prints JSON; --out FILE writes it."""
