# The app in a container: docker compose up (see compose.yaml), or docker build -t neurflow . with settings of your own.
FROM python:3.12-slim AS build
# where torch and torchvision come from, both from one place because they must fit; https://pypi.org/simple for NVIDIA graphics cards
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# what a workspace at a URL needs: s3fs or gcsfs
ARG STORAGE=
RUN python -m venv /venv
COPY requirements.txt /
RUN /venv/bin/pip install --no-cache-dir --index-url "$TORCH_INDEX" torch torchvision \
    && /venv/bin/pip install --no-cache-dir -r /requirements.txt $STORAGE

FROM python:3.12-slim
RUN useradd --uid 10001 --create-home neurflow && install -d -o neurflow -g neurflow /data
COPY --from=build /venv /venv
WORKDIR /app
COPY app.py ./
COPY .streamlit .streamlit
COPY pages pages
COPY neurflow_engine neurflow_engine
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 NEURFLOW_WORKSPACE=/data NEURFLOW_CACHE=/data/mirrors HF_HOME=/data/huggingface
USER 10001
VOLUME /data
EXPOSE 8501
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8501/_stcore/health', timeout=4)"]
# in a container this is how the port can be published at all; without sign-in the app then asks for NEURFLOW_ANONYMOUS
CMD ["streamlit", "run", "app.py", "--server.address", "0.0.0.0"]
