"""What may happen to jobs and attempts, and the rows that it leaves. The only writers of them."""
