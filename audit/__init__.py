"""What an auditor computes from ledgers and runs, without trusting the program that wrote them."""
