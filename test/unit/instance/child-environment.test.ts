import { expect, test } from 'vitest';
import { childEnvironment } from '../../../src/instance/child-environment.js';

test.each([
  ['LLAMA_API_KEY', 'the key is that of the run'],
  ['LLAMA_ARG_API_KEY_FILE', "the clients' keys would open the child"],
  ['LLAMA_ARG_MODELS_DIR', 'it would make the child a router'],
  ['LLAMA_ARG_MODELS_PRESET', 'it would make the child a router'],
  ['LLAMA_ARG_MODELS_MAX', 'it would make the child a router'],
  ['LLAMA_ARG_MODELS_AUTOLOAD', 'it would make the child a router'],
  ['LLAMA_ARG_NO_MODELS_AUTOLOAD', 'it would make the child a router'],
  ['LLAMA_SERVER_CHILD_MODE', 'it would make the child a download worker'],
  ['LLAMA_ARG_LOG_FILE', 'all children would write one file'],
  ['AIP_MODE', 'it would make the child a Vertex server'],
  ['AIP_HTTP_PORT', 'it would move the port'],
  ['LLAMA_SUPERVISOR_QUEUE_MAX', 'it is ours'],
])('%s does not reach a child: %s', (name) => {
  expect(childEnvironment({ [name]: 'x', PATH: '/bin' })).not.toHaveProperty(name);
});

test('TLS files are set to empty, which overrides the config file that a child reads itself', () => {
  const environment = childEnvironment({
    LLAMA_ARG_SSL_KEY_FILE: '/etc/key.pem',
    LLAMA_ARG_SSL_CERT_FILE: '/etc/cert.pem',
  });
  expect(environment).toMatchObject({ LLAMA_ARG_SSL_KEY_FILE: '', LLAMA_ARG_SSL_CERT_FILE: '' });
});

test('the repository of remote presets is set to empty: a child with a model of its own must not load it', () => {
  expect(childEnvironment({ LLAMA_ARG_HF_REPO: 'me/presets' })['LLAMA_ARG_HF_REPO']).toBe('');
});

test('an empty option does not reach a child, which would not start with it', () => {
  expect(childEnvironment({ LLAMA_ARG_PORT: '', PATH: '' })).not.toHaveProperty('LLAMA_ARG_PORT');
  expect(childEnvironment({ PATH: '' })).toHaveProperty('PATH', '');
});

test('metrics are on, also where the environment says otherwise', () => {
  expect(childEnvironment({})['LLAMA_ARG_ENDPOINT_METRICS']).toBe('1');
  expect(childEnvironment({ LLAMA_ARG_ENDPOINT_METRICS: '0' })['LLAMA_ARG_ENDPOINT_METRICS']).toBe('1');
});

test('everything else is kept: devices, caches, options of the model and unknown names', () => {
  const kept = {
    PATH: '/usr/bin',
    HOME: '/home/someone',
    LD_LIBRARY_PATH: '/opt/cuda/lib64',
    CUDA_VISIBLE_DEVICES: '1',
    GGML_VK_VISIBLE_DEVICES: '0',
    HF_HOME: '/models/hf',
    HF_TOKEN: 'hf_x',
    LLAMA_CACHE: '/models',
    LLAMA_ARG_CTX_SIZE: '8192',
    LLAMA_ARG_N_GPU_LAYERS: '99',
    // Names that only resemble those that are removed.
    LLAMA_ARG_MODEL_ALIAS: 'x',
    MY_AIP_MODE: 'x',
    LLAMA_API_KEYS: 'x',
    SOMETHING_ELSE: '',
  };
  expect(childEnvironment(kept)).toMatchObject(kept);
});

test('the given environment is not changed', () => {
  const given = { LLAMA_API_KEY: 'x', PATH: '/bin' };
  childEnvironment(given);
  expect(given).toEqual({ LLAMA_API_KEY: 'x', PATH: '/bin' });
});

test('HTTP threads are enough for a burst of long streams, unless the user chose their number', () => {
  expect(childEnvironment({})['LLAMA_ARG_THREADS_HTTP']).toBe('64');
  expect(childEnvironment({ LLAMA_ARG_THREADS_HTTP: '8' })['LLAMA_ARG_THREADS_HTTP']).toBe('8');
});
