"""What a model directory holds, what is wrong with it, what it needs: findings for people and for scripts."""
