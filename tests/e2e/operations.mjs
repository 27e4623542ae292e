// Calls every operation of FLORA's official client, unchanged, and prints each answer as JSON.
import Flora, { toFile } from '@flora-ai/flora';

const flora = new Flora({ maxRetries: 0 });
const met = {};
async function call(name, promise) {
  met[name] = await promise;
  return met[name];
}
async function ended(get) {
  for (;;) {
    const run = await get();
    if (run.status === 'completed' || run.status === 'failed') return run;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
async function all(page) {
  const items = [];
  for await (const item of page) items.push(item);
  return items;
}

const workspace_id = (await call('workspaces.list', flora.workspaces.list())).workspaces[0].workspace_id;
const project = await call('projects.create', flora.projects.create({ name: 'One', workspace_id }));
const project_id = project.project_id;
const ws = { workspaceId: workspace_id };
await call('workspaces.projects.create', flora.workspaces.projects.create(workspace_id, { name: 'Two' }));
await call(
  'workspaces.folders.createProject',
  flora.workspaces.folders.createProject('fld_1', { ...ws, name: 'Three' }),
);
await call('projects.retrieve', flora.projects.retrieve(project_id));
await call('projects.list', all(flora.projects.list({ workspace_id, limit: 2 })));

const order = { type: 'image', prompt: 'a mug', workspace_id, project_id };
const made = await call('generations.create', flora.generations.create(order));
await call('generations.retrieve', ended(() => flora.generations.retrieve(made.run_id)));
await call('runs.startGeneration', flora.runs.startGeneration(order));
await call('generations.list', all(flora.generations.list({ project_id })));
await call('models.list', flora.models.list());

const photo = met['generations.retrieve'].outputs[0].url;
await call('techniques.list', all(flora.techniques.list()));
await call('techniques.retrieve', flora.techniques.retrieve('poster'));
const technique = { technique_id: 'tech_poster', workspace_id, inputs: { subject: 'a mug', photo } };
const top = await call('runs.startTechnique', flora.runs.startTechnique(technique));
met['run of runs.startTechnique'] = await ended(() => flora.generations.retrieve(top.run_id));
const inputs = [{ id: 'subject', type: 'text', value: 'a mug' }];
const nested = await call(
  'techniques.runs.create',
  flora.techniques.runs.create('tech_poster', { inputs, mode: 'async', idempotency_key: 'one' }),
);
const techniqueId = 'tech_poster';
await call('techniques.runs.retrieve', ended(() => flora.techniques.runs.retrieve(nested.run_id, { techniqueId })));
await call('techniques.runs.list', all(flora.techniques.runs.list({ technique_id: 'tech_poster', limit: 1 })));
met.notFoundAtTheNestedRoute = await flora.techniques.runs
  .retrieve(top.run_id, { techniqueId })
  .catch((error) => error.status);
met.malformedProject = await flora.generations
  .create({ ...order, project_id: 'prj_a b' })
  .catch((error) => `${error.status} ${error.error?.error?.code}`);

await call('actions.list', flora.actions.list());
await call('actions.retrieve', flora.actions.retrieve('blur-image-browser'));
const action = { action_id: 'blur-image-browser', workspace_id, project_id, inputs: [{ type: 'image', url: photo }] };
const acted = await call('actions.run', flora.actions.run(action));
met['run of actions.run'] = await ended(() => flora.generations.retrieve(acted.run_id));

await call('projects.canvas.update', flora.projects.canvas.update(project_id, { diagram: 'flowchart LR\n a[a mug] --> b[tea]' }));
await call('projects.canvas.retrieve', flora.projects.canvas.retrieve(project_id));
await call('projects.assets.attachAsset', flora.projects.assets.attachAsset('asset_1', { projectId: project_id }));
const placed = await call('projects.actions.create', flora.projects.actions.create(project_id, { action_id: 'blur-image-browser' }));
await call('projects.actions.run', flora.projects.actions.run(placed.node_id, { projectId: project_id }));
await call('projects.listNodes', all(flora.projects.listNodes(project_id, { limit: 1 })));
const graph = await call('workspaces.projects.graph', flora.workspaces.projects.graph(project_id, ws));
await call(
  'workspaces.projects.canvas.applyChangeset',
  flora.workspaces.projects.canvas.applyChangeset(project_id, {
    ...ws,
    add: [{ ref: 'x', type: 'text', prompt: 'a poem' }],
    connect: [{ from: graph.nodes[0].id, to: 'x' }],
  }),
);
await call(
  'workspaces.projects.runNodes',
  flora.workspaces.projects.runNodes(project_id, { ...ws, node_ids: [graph.nodes[0].node_id, 'node_missing'] }),
);
const definition = await call(
  'workspaces.projects.canvas.retrieveDefinition',
  flora.workspaces.projects.canvas.retrieveDefinition(project_id, ws),
);
await call(
  'workspaces.projects.canvas.replaceDefinition',
  flora.workspaces.projects.canvas.replaceDefinition(project_id, { ...ws, definition: definition.definition }),
);

const folder = await call('workspaces.library.folders.create', flora.workspaces.library.folders.create(workspace_id));
const item = { ...ws, type: 'text', text: 'a poem' };
await call('workspaces.library.folders.addItem', flora.workspaces.library.folders.addItem(folder.folder_id, item));
await call('workspaces.library.folders.delete', flora.workspaces.library.folders.delete(folder.folder_id, ws));
await call('feedback.record', flora.feedback.record({ kind: 'bug', summary: 's', detail: 'd' }));

if (process.env.ASSETS) {
  const file = await toFile(Buffer.from(process.env.ASSETS, 'base64'), 'a.png', { type: 'image/png' });
  const asset = await call('assets.create', flora.assets.create({ file, workspace_id, content_type: 'image/png' }));
  await call('assets.retrieve', flora.assets.retrieve(asset.asset_id));
  await call('assets.list', all(flora.assets.list({ workspace_id, limit: 1 })));
  const reserve = () =>
    flora.assets.create({ source: 'signed-url', workspace_id, content_type: 'image/png', file_name: 'b.png' });
  const reserved = await reserve();
  const form = new FormData();
  for (const [name, value] of Object.entries(reserved.upload.form_fields)) form.append(name, value);
  form.append(reserved.upload.file_field, new Blob([Buffer.from(process.env.ASSETS, 'base64')]), 'b.png');
  await fetch(reserved.upload.url, { method: 'POST', body: form });
  await call('assets.complete', flora.assets.complete(reserved.asset_id));
  met.retryOfAnUpload = await flora.assets.retry(reserved.asset_id).catch((error) => error.status);
  const expired = await reserve();
  await new Promise((resolve) => setTimeout(resolve, 3500));
  await call('assets.retry', flora.assets.retry(expired.asset_id));
}
console.log(JSON.stringify(met));
