"""Before a job runs: models and inputs found and checked, the plan, and what the prompts are like."""
