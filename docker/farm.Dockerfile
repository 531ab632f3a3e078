# Scheduler and the farm command: no torch.
FROM python:3.11-slim
WORKDIR /opt/qeff-farm
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY farm ./farm
COPY workers ./workers
COPY qeff_engine ./qeff_engine
COPY migrations ./migrations
RUN pip install --no-cache-dir -c constraints.txt '.[postgres]'
RUN useradd --create-home farm && mkdir -p /var/lib/farm && chown farm:farm /var/lib/farm
USER farm
ENV FARM_HOME=/var/lib/farm
CMD ["python", "-m", "farm.scheduler"]
