# A node: host stages, or the run stage pinned to one device. Holds the engine and a simulated Cloud AI SDK.
#
# For real cards leave the simulated SDK out: mount the real one on /opt/qti-aic, pass the device with
# --device /dev/accel/accelN, and unset QAIC_SDK_ROOT.
FROM python:3.11-slim
WORKDIR /opt/qeff-farm
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY farm ./farm
COPY workers ./workers
COPY qeff_engine ./qeff_engine
COPY migrations ./migrations
RUN pip install --no-cache-dir -c constraints.txt '.[all]'
RUN useradd --create-home farm && mkdir -p /var/lib/farm && chown farm:farm /var/lib/farm
ARG DEVICES=ultra:1,standard:1
RUN python -m qeff_engine.simulated_sdk install /opt/simulated-sdk --devices "$DEVICES" && chown -R farm /opt/simulated-sdk
USER farm
ENV FARM_HOME=/var/lib/farm QAIC_SDK_ROOT=/opt/simulated-sdk
CMD ["python", "-m", "workers", "host"]
