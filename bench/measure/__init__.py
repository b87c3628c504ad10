"""What every benchmark is measured with: records, clocks, rates of this machine, E2E's lengths."""
