"""A task app without a job: deployed, asked, checked against the contract."""
